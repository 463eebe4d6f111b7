"""What each rank does, for whoever looks whether it hangs."""
