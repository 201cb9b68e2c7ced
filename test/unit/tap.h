/*-------------------------------------------------------------------------
 *
 * tap.h
 *	  Just enough of the Test Anything Protocol for the unit tests.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_TAP_H
#define TIMPUSH_TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int	tap_count = 0;
static int	tap_failures = 0;

/* One test.  Says what it tests in the manner of printf, returns its result. */
__attribute__((format(printf, 2, 3), unused))
static bool
ok(bool result, const char *format,...)
{
	va_list		args;

	printf("%sok %d - ", result ? "" : "not ", ++tap_count);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
	if (!result)
		tap_failures++;
	return result;
}

/* Two strings are equal; NULL equals NULL only. */
__attribute__((unused))
static bool
is(const char *got, const char *expected, const char *name)
{
	bool		same = got == NULL || expected == NULL ?
	got == expected : strcmp(got, expected) == 0;

	if (!ok(same, "%s", name))
		printf("#      got: %s\n# expected: %s\n",
			   got != NULL ? got : "NULL",
			   expected != NULL ? expected : "NULL");
	return same;
}

/* Two numbers are equal. */
__attribute__((unused))
static bool
is_int(long long got, long long expected, const char *name)
{
	if (!ok(got == expected, "%s", name))
		printf("#      got: %lld\n# expected: %lld\n", got, expected);
	return got == expected;
}

/* The plan, and the exit status for main(). */
__attribute__((unused))
static int
done_testing(void)
{
	printf("1..%d\n", tap_count);
	return tap_failures == 0 ? 0 : 1;
}

#endif							/* TIMPUSH_TAP_H */
