"""What every stage stands on: command line, plan, choice of items, cost of a step."""
