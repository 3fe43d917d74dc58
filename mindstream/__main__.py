"""`python -m mindstream`."""

from mindstream.cli import main

main()
