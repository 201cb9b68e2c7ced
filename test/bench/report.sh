# shellcheck shell=bash
#
# Figures of the benchmark: medians, the table, and the lines of JSON.

TABLE=()

# Keep a line of progress out of the table.
note()
{
	printf '%s\n' "$*" >&2
}

# Evaluate an arithmetic expression in floating point.
calc()
{
	awk "BEGIN { printf \"%.6g\", $1 }"
}

# Median and other quantiles of the numbers given: quantile 0.5 1 2 3
quantile()
{
	local q=$1
	shift
	printf '%s\n' "$@" | sort -g | awk -v q="$q" '
		{ v[NR] = $1 }
		END {
			if (NR == 0) exit 1
			p = (NR - 1) * q + 1; i = int(p)
			x = i < NR ? v[i] + (p - i) * (v[i + 1] - v[i]) : v[NR]
			printf "%.6g", x
		}'
}

median()
{
	quantile 0.5 "$@"
}

# Take one value out of a line of name=value pairs: field per_second "$line"
field()
{
	sed -n "s/.*\\b$1=\\([^ ]*\\).*/\\1/p" <<<"$2"
}

# Add a line to the table and to the results file:
#	report NAME OURS REFERENCE UNIT RATIO TARGET
# REFERENCE, RATIO and TARGET may be "-".  A TARGET is "<= x", ">= x", "< x" or
# "> x"; it is held against the ratio, or where there is none against OURS.
# More pairs name=value go to the results file only.
report()
{
	local name=$1 ours=$2 reference=$3 unit=$4 ratio=$5 target=$6 met='-' held
	local pair extra=''
	shift 6

	held=$ratio
	[[ $ratio != - ]] || held=$ours
	if [[ $target != - ]]; then
		met=$(awk -v h="$held" -v op="${target% *}" -v t="${target#* }" 'BEGIN {
			ok = op == "<" ? h < t : op == "<=" ? h <= t : op == ">" ? h > t : h >= t
			print ok ? "yes" : "no" }')
	fi
	for pair in "$@"; do
		extra+=$(printf ', "%s": "%s"' "${pair%%=*}" "${pair#*=}")
	done

	note "  => $name: $(round "$ours") $unit, reference $(round "$reference"), ratio $(round "$ratio")"
	TABLE+=("$(printf '%s|%s|%s|%s|%s|%s|%s' "$name" "$(round "$ours")" \
		"$(round "$reference")" "$unit" "$(round "$ratio")" "$target" "$met")")
	printf '{"at": "%s", "measure": "%s", "ours": %s, "reference": %s, "unit": "%s", "ratio": %s, "target": "%s", "met": "%s", "cores": %s, "load": %s%s}\n' \
		"$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$name" "$(json_number "$ours")" \
		"$(json_number "$reference")" "$unit" "$(json_number "$ratio")" \
		"$target" "$met" "$(nproc)" \
		"$(cut -d ' ' -f 1 /proc/loadavg)" "$extra" >>"$OUTPUT"
}

# The same for a ratio: compare NAME OURS REFERENCE UNIT TARGET [name=value]...
compare()
{
	report "$1" "$2" "$3" "$4" "$(calc "$2 / $3")" "${@:5}"
}

# As many digits as a reader wants.
round()
{
	if [[ $1 == - ]]; then
		printf -- '-'
	else
		awk -v x="$1" 'BEGIN { a = x < 0 ? -x : x; f = a >= 1000 ? "%.0f" : a >= 10 ? "%.1f" : "%.3f"; printf f, x }'
	fi
}

json_number()
{
	if [[ $1 == - ]]; then printf null; else printf '%s' "$1"; fi
}

# Print the table of everything reported.
print_table()
{
	{
		echo 'measure|ours|reference|unit|ratio|target|met?'
		printf '%s\n' "${TABLE[@]}"
	} | awk -F'|' '
		{ for (i = 1; i <= NF; i++) { c[NR, i] = $i; if (length($i) > w[i]) w[i] = length($i) } }
		END {
			for (r = 1; r <= NR; r++) {
				line = ""
				for (i = 1; i <= 7; i++)
					line = line sprintf((i == 2 || i == 3 || i == 5 ? "%" : "%-") w[i] "s  ", c[r, i])
				sub(/ +$/, "", line); print line
				if (r == 1) { gsub(/./, "-", line); print line }
			}
		}'
}
