"""Which documents are kept, in which split, how often, and where long ones may be cut; the ledger of all of them."""
