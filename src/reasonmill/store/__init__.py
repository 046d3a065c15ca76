"""The home on disk: content-addressed objects, the commit protocol, and the ledger of where each came from."""
