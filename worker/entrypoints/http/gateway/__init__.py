"""Several server processes behind one port, with nginx in front of them."""
