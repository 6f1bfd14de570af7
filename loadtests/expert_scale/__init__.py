"""Expert pools at the scale of a large model, simulated: replication by heat against placements that stand still."""
