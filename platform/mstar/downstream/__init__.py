"""The downstream tasks: MIL heads on stored features, trained and evaluated honestly."""
