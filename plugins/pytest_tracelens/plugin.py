"""What pytest loads; it imports nothing but pytest, so that it costs nothing unused."""
