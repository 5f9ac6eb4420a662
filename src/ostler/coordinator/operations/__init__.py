"""Operations: each a function of a transaction, and the only code that changes rows."""
