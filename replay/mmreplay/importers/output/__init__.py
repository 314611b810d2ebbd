"""Operations to the tables of a trace, while they come."""
