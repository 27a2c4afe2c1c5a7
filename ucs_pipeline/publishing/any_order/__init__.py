"""Publishing of an any-order feed: a ledger says what is in the stream."""
