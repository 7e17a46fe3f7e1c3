"""What policies make of benchmarks: replies, rates, attacks, ability, flips; the results of a run and of seeds."""
