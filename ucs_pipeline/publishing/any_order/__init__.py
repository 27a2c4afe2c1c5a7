"""Publishing of an any-order feed, with a ledger of what is in the stream."""
