"""Pure functions of records: no policy, no simulator, no file but the declaration of what a study judges."""
