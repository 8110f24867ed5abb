"""`python -m experiments report`: every finished result on one page that needs nothing else."""
