"""What a run will take: measured rates, bytes, hours, cost, and where it stops scaling."""
