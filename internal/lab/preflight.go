package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/doctor"
	"kuorum/internal/etcd"
	"kuorum/internal/host"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
)

// checkHost refuses what could not work before anything is made, in the words
// of `kuorum doctor`.
func checkHost(ctx context.Context, root string, spec *cluster.Spec, l *Lab) error {
	if err := RequireRoot("kuorum up " + spec.Metadata.Name); err != nil {
		return err
	}
	facts, err := doctor.Measure(ctx, root)
	if err != nil {
		return err
	}
	if err := doctor.FirstProblem(facts.System()); err != nil {
		return err
	}
	if err := checkPath(l); err != nil {
		return err
	}
	if len(spec.Balancers()) > 0 {
		if err := doctor.Balancer().Problem(); err != nil {
			return err
		}
	}
	if _, running := l.Running(); running {
		return nil // it has what it needs
	}
	need := doctor.LabNeed(spec)
	if err := checkSpace(facts, need); err != nil {
		return err
	}
	if err := doctor.OverlayDisk(facts.Disk.Dir, host.TryOverlay(facts.Disk.Dir)).Problem(); err != nil {
		return err
	}
	return letInotify(facts, need)
}

// etcdPatience is how long a look at somebody else's etcd may take.
const etcdPatience = 5 * time.Second

// checkEtcd refuses an etcd that has another cluster's data. One that cannot be
// reached from here is left to the servers, which look again.
func (u *Up) checkEtcd(ctx context.Context) error {
	config, err := pki.ExternalEtcdTLS(u.External.CA, u.External.Client)
	if err != nil {
		return err
	}
	client, err := etcd.Dial(etcd.Config{Endpoints: u.Spec.Spec.Etcd.External.Endpoints, TLS: config})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // nothing was written
	limited, cancel := context.WithTimeout(ctx, etcdPatience)
	defer cancel()
	if err := membership.Vacant(limited, client); errors.Is(err, membership.ErrForeign) {
		return err
	}
	return context.Cause(ctx)
}

// CheckRoom refuses a further machine that this host has no room for, and raises
// its limit of inotify instances where that is all that is missing.
func (l *Lab) CheckRoom(ctx context.Context, role cluster.Role) error {
	facts, err := doctor.Measure(ctx, l.dir)
	if err != nil {
		return err
	}
	if role == cluster.RoleBalancer {
		if err := doctor.Balancer().Problem(); err != nil {
			return err
		}
	}
	need := doctor.MachineNeed(role)
	if err := checkSpace(facts, need); err != nil {
		return err
	}
	return letInotify(facts, need)
}

// checkSpace refuses what this host has no room for, but for inotify instances.
func checkSpace(facts doctor.Facts, need doctor.Need) error {
	facts.Inotify.Limit = facts.Inotify.Enough(need)
	return doctor.FirstProblem(facts.Space(need))
}

// letInotify raises the host's limit of inotify instances when too few are free, once
// nothing else is in the way: 128, the kernel's own, is too low for a second lab,
// and a program that gets none ends. Where it may not be raised, the error says what
// to do.
func letInotify(facts doctor.Facts, need doctor.Need) error {
	limit := facts.Inotify.Enough(need)
	if limit == facts.Inotify.Limit || host.LimitInotify(limit) == nil {
		return nil
	}
	return doctor.FirstProblem(facts.Space(need))
}

// RequireRoot refuses to go on without root's rights; command is what to call
// with them.
func RequireRoot(command string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return &cluster.Problem{
		What: "this needs root", Why: "a lab is made of namespaces, mounts and control groups",
		Do: "sudo " + command,
	}
}

// maxSocketPath is what the kernel takes for a unix socket (unix(7)).
const maxSocketPath = 107

func checkPath(l *Lab) error {
	path := l.path(controlSocket)
	if len(path) <= maxSocketPath {
		return nil
	}
	return &cluster.Problem{
		What: "the place for labs has too long a path", Why: fmt.Sprintf("a socket's path has at most %d bytes, %s has %d", maxSocketPath, path, len(path)),
		Do: "use a shorter one: KUORUM_STATE=/var/lib/kuorum",
	}
}
