#!/usr/bin/env bash
# polars 2.1.0.
# A text column compared with a number raises, in the expression API and in SQL
# with a whole number. But in pl.sql_expr a number with a decimal point is let
# through: "width > 256.5" compares as text, as if it were "width > '256.5'".
# There is no error and no warning. "9" and "64" pass the filter, "1024" does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet polars==2.1.0
cd "$work"
venv/bin/python - <<'PY'
import polars as pl

df = pl.DataFrame({"width": ["9", "64", "300", "1024"]})

def rows(label, expr):
    try:
        result = df.filter(expr)["width"].to_list()
    except pl.exceptions.ComputeError as e:
        result = "ComputeError: " + str(e).splitlines()[0]
    print(f"{label:24} -> {result}")
    return result

api = rows('pl.col("width") > 256.5', pl.col("width") > 256.5)
whole = rows("SQL: width > 256", pl.sql_expr("width > 256"))
decimal = rows("SQL: width > 256.5", pl.sql_expr("width > 256.5"))
text = rows("SQL: width > '256.5'", pl.sql_expr("width > '256.5'"))
if not (isinstance(api, str) and isinstance(whole, str)
        and decimal == text == ["9", "64", "300"]):
    raise SystemExit("behaviour changed")
PY
