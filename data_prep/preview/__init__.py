"""What a corpus is and what its rows will look like, before it is paid for."""
