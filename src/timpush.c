/*-------------------------------------------------------------------------
 *
 * timpush.c
 *	  Library entry: settings, hooks, the launcher's registration.
 *
 * Works in two ways.  Preloaded, it reserves shared memory and registers the
 * launcher.  Loaded by a session only, pushes can be enqueued but nothing
 * sends them, and the session is told so.
 *
 * Crash story: nothing here has state.  Nothing of libcurl or OpenSSL is
 * touched, because preloading runs in the postmaster.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "compat.h"
#include "compose.h"
#include "fault.h"
#include "guard.h"
#include "launcher.h"
#include "shared.h"
#include "timpush.h"
#include "wake.h"

PG_MODULE_MAGIC;

bool		timpush_enabled = true;
char	   *timpush_default_server = NULL;
int			timpush_default_ttl = 86400;
int			timpush_on_unknown = ON_UNKNOWN_RETRY;
int			timpush_retention = 7 * 86400;
int			timpush_idle_exit = 60;
bool		timpush_is_worker = false;

static const struct config_enum_entry on_unknown_options[] = {
	{"retry", ON_UNKNOWN_RETRY, false},
	{"hold", ON_UNKNOWN_HOLD, false},
	{"accept", ON_UNKNOWN_ACCEPT, false},
	{NULL, 0, false}
};

void		_PG_init(void);

static void
define_settings(void)
{
	DefineCustomBoolVariable("timpush.enabled",
							 "Sends pushes that wait.",
							 "If off, pushes can be enqueued but none is sent.",
							 &timpush_enabled, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("timpush.default_server",
							   "Sets the server of pushes that name none.",
							   "If empty, the only server of the wrapper is used.",
							   &timpush_default_server, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("timpush.default_ttl",
							"Sets how long a push lives that names no expiry.",
							"Counted from the later of now and the time to send; 0 means forever.",
							&timpush_default_ttl, 86400, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomEnumVariable("timpush.on_unknown",
							 "Sets what is done when it cannot be known whether a push arrived.",
							 "Recorded in the push when it is enqueued.",
							 &timpush_on_unknown, ON_UNKNOWN_RETRY, on_unknown_options,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("timpush.retention",
							"Sets how long finished pushes are kept.",
							"Their results, errors and calls are then removed; 0 means never.",
							&timpush_retention, 7 * 86400, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("timpush.idle_exit",
							"Sets after which time without work a worker leaves.",
							NULL,
							&timpush_idle_exit, 60, 1, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	fault_init();
	MarkGUCPrefixReserved("timpush");
}

void
_PG_init(void)
{
	define_settings();
	wake_init();
	guard_init();

	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	shared_init();
	launcher_register();
}
