"""What every experiment shares: how it runs, what it leaves, and the ledger of claims."""
