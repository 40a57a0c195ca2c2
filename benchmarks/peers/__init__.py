"""The same rounds by other tools: programs that run in environments where these tools are, and not planc."""
