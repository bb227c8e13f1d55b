"""Writes experiments/CLAIMS.md, the ledger of claims: a door to `experiments.harness.ledger`."""

from experiments.harness.ledger import main

if __name__ == "__main__":
    main()
