/*-------------------------------------------------------------------------
 *
 * version.h
 *	  Is the extension in the database the one that the library is made for?
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_VERSION_H
#define TIMPUSH_VERSION_H

#include "postgres.h"

#define VERSION_HINT \
	"Run ALTER EXTENSION timpush UPDATE. If another version has just been installed, restart the server before."

/*
 * After another version was installed, until ALTER EXTENSION or a restart, the
 * tables may be others than the library knows.  "outbox" is push_outbox of the
 * extension; the check raises object_not_in_prerequisite_state.
 */
extern bool version_matches(Oid outbox);
extern void version_check(Oid outbox);

#endif							/* TIMPUSH_VERSION_H */
