"""What tests share: real parts put together, and peers that behave as browsers do."""
