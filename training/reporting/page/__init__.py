"""The page about a run or several: charts, tables and their templates."""
