"""Parts of the HTTP servers of the gateway and of the page for people."""
