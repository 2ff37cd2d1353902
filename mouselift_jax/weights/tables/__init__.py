"""One table a network: how its torch keys map to our parameters, both ways."""
