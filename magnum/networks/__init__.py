"""How a bay's workloads are connected."""
