"""A chat over SockJS, for browsers whose network lets no WebSocket through."""
