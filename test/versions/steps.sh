# shellcheck shell=bash
#
# The steps of test/check that run the tests on PostgreSQL's other versions, each
# on the Debian that carries it, with its compilers, its libcurl and its nginx.
#
# A Debian is a folder in the scratch folder, made by debootstrap from where this
# machine has its packages, and used in namespaces of its own.  So its mounts and
# its processes end with its first process, however that comes to its end.
#
# To be sourced by test/check.

# PostgreSQL's version and the Debian that it comes with.
VERSIONS=(17:trixie 18:sid)

versions_needs()
{
	need "to make other Debians" debootstrap debian-archive-keyring
}

# Where this machine gets Debian from, by its own configuration.
machine_mirror()
{
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
		'Origin: Debian' 'Label: Debian' 2>/dev/null | awk 'NR == 1'
}

# What a Debian's apt is to do as the machine's does; and nothing in it needs
# to survive a crash.
apt_settings()
{
	apt-config dump --format '%f "%v";%n' Acquire::http::Proxy \
		Acquire::https::Proxy Acquire::Check-Valid-Until Acquire::Check-Date
	echo 'DPkg::Options:: "--force-unsafe-io";'
}

# A command as root, in namespaces of its own.
secluded()
{
	attended unshare --mount --pid --ipc --fork --kill-child --mount-proc "$@"
}

# A command in the Debian DIR.  Its shared memory is its own too.
in_debian()
{
	local dir=$1

	shift
	# shellcheck disable=SC2016
	secluded bash -euc '
		mount -t proc proc "$0/proc"
		mount -t tmpfs -o mode=1777 shm "$0/dev/shm"
		exec chroot "$0" env -C /timpush "$@"' "$dir" "$@"
}

make_debian()
{
	local dir=$1 suite=$2 mirror

	mirror=$(machine_mirror)
	[[ -n $mirror ]] || die "apt of this machine knows no packages of Debian"
	secluded debootstrap --variant=minbase \
		--keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
		"$suite" "$dir" "$mirror" || return
	apt_settings >"$dir/etc/apt/apt.conf.d/timpush" || return
	cp -R "$SCRATCH/src" "$dir/timpush" && chown -R root:root "$dir/timpush"
}

# This program in that Debian, to which it is a new machine.  What it prints is
# printed as it comes, and its assertions are added to ours.
version_tests()
{
	local dir=$1 major=$2 log=$SCRATCH/log/version$2 out printer status=0
	local good=0 bad=1 last
	local -a options=()

	shift 2
	[[ $LONG == yes ]] && options+=(--long)
	[[ $SANITIZE == yes ]] && options+=(--sanitize)
	heading "all that on PostgreSQL $major"
	printf '\n'
	exec {out}> >(tee "$log" | sed -u 's/^/    /')
	printer=$!
	in_debian "$dir" env -u TMPDIR -u PG_CONFIG "PG_MAJOR=$major" HOME=/root \
		PATH=/usr/sbin:/usr/bin:/sbin:/bin test/check "${options[@]}" \
		"${FILTER[@]}" >&"$out" 2>&1 || status=$?
	exec {out}>&-
	wait "$printer" || true
	last=$(tail -n 1 "$log")
	[[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] &&
		good=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
	[[ $status -ne 0 && $bad -eq 0 ]] && bad=1
	passed=$((passed + good))
	failed=$((failed + bad))
	printf '    %-58s' "PostgreSQL $major: $good passed, $bad failed"
	if [[ $bad -eq 0 ]]; then
		ended ok
	else
		ended "FAILED, exit status $status"
	fi
}

versions_steps()
{
	local version dir suite

	for version in "${VERSIONS[@]}"; do
		suite=${version#*:}
		dir=$SCRATCH/$suite
		if simple_step "make a Debian $suite" make_debian "$dir" "$suite"; then
			version_tests "$dir" "${version%:*}"
			[[ $KEEP == yes ]] || rm -rf --one-file-system "$dir"
		fi
	done
}
