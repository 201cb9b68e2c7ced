/*-------------------------------------------------------------------------
 *
 * fault.c
 *	  Places where tests let things go wrong: timpush.fault_points.
 *
 * The setting lists what happens where, as in
 *
 *		timpush.fault_points = 'claimed:kill:0.01, *:error:0.001'
 *
 * A point is named by its FAULT_POINT() in the source, "*" means any.  Of the
 * entries that name it each is tried with its probability (1 by default):
 * "kill" ends the process by SIGKILL, "error" raises an error, "sleep" holds
 * the process up for a moment.  Each is said in the log first.
 *
 * Built by "make FAULTS=1" only; a build for use has nothing of this.
 *
 * Crash story: to crash is the purpose.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "compat.h"
#include "fault.h"

#define MAX_FAULTS		64
#define MAX_FAULT_NAME	32

/* "sleep" lasts so long. */
#define FAULT_SLEEP_US	3000000

typedef struct Fault
{
	char		name[MAX_FAULT_NAME];
	char		action[8];
	double		probability;
} Fault;

typedef struct FaultList
{
	int			n;
	Fault		faults[MAX_FAULTS];
} FaultList;

static char *fault_points = NULL;
static FaultList *current = NULL;

/* One entry, without white space around it. */
static bool
parse_fault(const char *entry, Fault *fault)
{
	int			end = 0;

	fault->probability = 1;
	if (sscanf(entry, "%31[a-z*-]:%7[a-z]%n", fault->name, fault->action, &end) != 2)
		return false;
	if (entry[end] == ':')
	{
		char	   *rest;

		fault->probability = strtod(entry + end + 1, &rest);
		end = rest - entry;
	}
	return entry[end] == '\0' &&
		fault->probability >= 0 && fault->probability <= 1 &&
		(strcmp(fault->action, "kill") == 0 || strcmp(fault->action, "error") == 0 ||
		 strcmp(fault->action, "sleep") == 0);
}

static bool
check_fault_points(char **newval, void **extra, GucSource source pg_attribute_unused())
{
	FaultList	list = {0};
	char	   *copy = pstrdup(*newval);
	char	   *rest = copy;
	char	   *entry;

	while ((entry = strtok_r(rest, ", ", &rest)) != NULL)
	{
		if (list.n == MAX_FAULTS || !parse_fault(entry, &list.faults[list.n++]))
		{
			GUC_check_errdetail("\"%s\" is not name:action[:probability], or is one too many.", entry);
			pfree(copy);
			return false;
		}
	}
	pfree(copy);
	*extra = guc_extra(sizeof(FaultList));
	if (*extra == NULL)
		return false;
	memcpy(*extra, &list, sizeof(FaultList));
	return true;
}

static void
assign_fault_points(const char *newval pg_attribute_unused(), void *extra)
{
	current = extra;
}

/* Whoever commits what: just before it does. */
static void
fault_at_commit(XactEvent event, void *arg pg_attribute_unused())
{
	if (event == XACT_EVENT_PRE_COMMIT)
		FAULT_POINT("commit");
}

void
fault_init(void)
{
	RegisterXactCallback(fault_at_commit, NULL);
	DefineCustomStringVariable("timpush.fault_points",
							   "Sets what goes wrong where, for tests.",
							   NULL,
							   &fault_points, "",
							   PGC_SUSET, GUC_NOT_IN_SAMPLE,
							   check_fault_points, assign_fault_points, NULL);
}

static void
strike(const Fault *fault, const char *name, bool may_raise)
{
	bool		raises = strcmp(fault->action, "error") == 0;

	if (raises && !may_raise)
		return;
	ereport(LOG,
			(errmsg("timpush: %s at fault point \"%s\"", fault->action, name),
			 errhidestmt(true)));
	if (raises)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("fault point \"%s\" was hit", name)));
	else if (strcmp(fault->action, "kill") == 0)
		kill(MyProcPid, SIGKILL);
	else
		pg_usleep(FAULT_SLEEP_US);
}

void
fault_point(const char *name, bool may_raise)
{
	for (int i = 0; current != NULL && i < current->n; i++)
	{
		const Fault *fault = &current->faults[i];

		if ((strcmp(fault->name, "*") == 0 || strcmp(fault->name, name) == 0) &&
			random_fraction() < fault->probability)
			strike(fault, name, may_raise);
	}
}
