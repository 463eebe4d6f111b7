"""From documents to full rows."""
