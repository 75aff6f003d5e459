package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
	"kuorum/internal/step"
)

const (
	alarmNoSpace = "NOSPACE"
	alarmCorrupt = "CORRUPT"
	// disarmBelow is how full a database may be, in percent of its quota, so
	// that the alarm does not come back with the next writes.
	disarmBelow = 95
)

func (a *app) etcdAlarms() *cobra.Command {
	w, output, disarm := &etcdWork{app: a, ask: "mend what caused the alarms, then to disarm them"}, "", false
	cmd := &cobra.Command{
		Use:   "alarms",
		Short: "The alarms that stop all writes; take them back when the cause is mended",
		Long: `Lists etcd's alarms. With --disarm it takes back those whose cause is gone, and refuses the others: NOSPACE
when every database is below 95 % of its quota, CORRUPT when the damaged member is not on the list any more. While
one CORRUPT has to stay, all do.`,
		Example: `  kuorum etcd alarms
  kuorum etcd alarms --disarm`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if disarm {
				return w.run(cmd.Context(), w.disarm)
			}
			t, err := a.target()
			if err != nil {
				return err
			}
			e, err := reviewEtcd(cmd.Context(), t)
			if err != nil {
				return err
			}
			if err := known(e); err != nil {
				return err
			}
			return a.printAlarms(e, output)
		},
	}
	w.bind(cmd, 3*time.Minute)
	outputFlag(cmd, &output)
	cmd.Flags().BoolVar(&disarm, "disarm", false, "take back the alarms whose cause is gone")
	return cmd
}

func (a *app) printAlarms(e advise.Etcd, output string) error {
	if output != "table" {
		return a.printData(map[string]any{"apiVersion": cluster.APIVersion, "kind": "EtcdAlarmList", "items": append([]cluster.EtcdAlarm{}, e.Alarms...)}, output)
	}
	if len(e.Alarms) == 0 {
		a.talk("etcd has no alarms\n")
		return nil
	}
	return a.table(func(w io.Writer) {
		fmt.Fprintln(w, "MEMBER\tID\tALARM")
		for _, alarm := range e.Alarms {
			fmt.Fprintf(w, "%s\t%s\t%s\n", labelOf(e, alarm.Member), alarm.Member, alarm.Kind)
		}
	})
}

func labelOf(e advise.Etcd, id string) string {
	for _, m := range e.Members {
		if m.ID == id {
			return m.Label
		}
	}
	return "-"
}

func (w *etcdWork) disarm(ctx context.Context) error {
	now, err := w.review(ctx)
	if err != nil {
		return err
	}
	if err := known(now); err != nil {
		return err
	}
	if len(now.Alarms) == 0 {
		w.app.talk("etcd has no alarms\n")
		return nil
	}
	mended, refusal := disarmable(now)
	var steps []step.Step
	for _, alarm := range mended {
		name := fmt.Sprintf("disarm %s of member %s", alarm.Kind, alarm.Member)
		steps = append(steps, step.Step{Name: name, Do: func(ctx context.Context) error { return w.client.Disarm(ctx, alarm) }})
	}
	if err := w.steps(ctx, steps, w.app.newProgress()); err != nil {
		return err
	}
	return refusal
}

// disarmable lists the alarms whose cause is gone, and says why the others
// stay.
func disarmable(e advise.Etcd) (mended []cluster.EtcdAlarm, refusal error) {
	full := fullDatabases(e)
	for _, alarm := range e.Alarms {
		switch {
		case alarm.Kind == alarmCorrupt && damaged(e, alarm.Member):
			return nil, &cluster.Problem{
				What: fmt.Sprintf("refused to disarm %s of member %s: damaged data would be served, and spread", alarmCorrupt, alarm.Member),
				Why:  corruptWhy(e, alarm.Member),
				Do:   "docs/findings.md, etcd-corrupt, has the steps",
				Exit: cluster.ExitRefused,
			}
		case alarm.Kind == alarmNoSpace && len(full) > 0:
			refusal = &cluster.Problem{
				What: fmt.Sprintf("refused to disarm %s: not every database is below %d %% of its quota, and it would come back", alarmNoSpace, disarmBelow),
				Why:  strings.Join(full, "\n"),
				Do:   "kuorum etcd compact --keep 0 && kuorum etcd defrag, then again; what else helps is in docs/findings.md, etcd-nospace",
				Exit: cluster.ExitRefused,
			}
		default:
			mended = append(mended, alarm)
		}
	}
	return mended, refusal
}

// damaged tells whether a member with wrong data may still be on the list. An
// alarm of member 0 says that some member is; one that is alone differs from
// nobody.
func damaged(e advise.Etcd, id string) bool {
	if id == "0" {
		return len(e.Members) > 1
	}
	return labelOf(e, id) != "-"
}

func corruptWhy(e advise.Etcd, id string) string {
	if id == "0" {
		return "etcd does not know which of its members has the wrong data"
	}
	return labelOf(e, id) + " is still on the member list"
}

// fullDatabases says of each member whose database is too full, or may be.
func fullDatabases(e advise.Etcd) []string {
	var full []string
	for _, m := range e.Members {
		switch s := m.Status; {
		case m.Name == "": // has never started: it has no database
		case s == nil:
			full = append(full, fmt.Sprintf("how full %s is nobody knows: it %s", m.Label, m.Why))
		case s.QuotaBytes > 0 && s.DBBytes*100 >= s.QuotaBytes*disarmBelow:
			full = append(full, fmt.Sprintf("%s has %s of a quota of %s, %s of it in use", m.Label, bytesText(s.DBBytes), bytesText(s.QuotaBytes), bytesText(s.DBUsedBytes)))
		}
	}
	return full
}
