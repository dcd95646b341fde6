"""HTTP: the addresses of the service, their description, what is around every request, and the server."""
