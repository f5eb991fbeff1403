"""A slide in the browser, with patch scores over it: served from this machine, or as a folder."""
