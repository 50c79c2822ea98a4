"""The program on every machine that runs workloads. Executes; never opens the database."""
