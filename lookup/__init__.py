"""What downstream services import to read interests.

```python
from lookup import Lookup
from encoder.settings import MilvusSettings

with Lookup(MilvusSettings(uri="http://127.0.0.1:19530")) as lookup:
    lookup.interests("17850")  # by key
    lookup.candidates("17850")  # the 50 items nearest to them
    lookup.audience("REGENCY CAKESTAND 3 TIER")  # the users nearest to an item
```
"""

from encoder.interest_index import Hit, Interest
from lookup.client import Audience, Candidates, Interests, Lookup, UnknownItem

__all__ = ["Audience", "Candidates", "Hit", "Interest", "Interests", "Lookup", "UnknownItem"]
