"""From documents to full rows: first the plan, which is arithmetic on lengths, then the tokens."""
