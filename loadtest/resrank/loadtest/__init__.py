"""Load on a running ResRank: scenarios, locust users, and a report that says whether the objectives were met."""
