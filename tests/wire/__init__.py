"""Real payloads, one named file each, and that our types can read every one of them."""
