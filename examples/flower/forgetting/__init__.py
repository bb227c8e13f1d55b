"""A federation on the digits that forgets one of its clients."""
