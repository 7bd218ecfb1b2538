"""ColossalAI as an engine: its plugins behind the `Engine` protocol. Nothing outside this folder imports ColossalAI."""
