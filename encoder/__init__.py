"""What training, serving and look-up agree on, said once."""
