package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kuorum/internal/bundle"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/kubeconfig"
	"kuorum/internal/pki"
	"kuorum/internal/step"
)

// Up is `kuorum up`: a lab made, or started again, and waited for.
type Up struct {
	Store  Store
	Spec   *cluster.Spec
	Bundle *bundle.Bundle
	// External is what a new cluster shows to an etcd that somebody else runs; nil: it
	// has its own, or the lab exists.
	External *pki.ExternalEtcd
	// KubeconfigFile is merged into; "" leaves everybody's kubeconfig alone.
	KubeconfigFile kubeconfig.File
	// Wait for nodes and a first pod; false returns when the machines are on.
	Wait bool

	bundleDir string // once it is unpacked
	lab       *Lab
	busy      *os.File // lock against another up or down of the same lab
}

// Steps is the whole procedure. Each step may be run again, so an interrupted
// `up` is completed by the next.
func (u *Up) Steps() []step.Step {
	name := u.Spec.Metadata.Name
	steps := []step.Step{
		{Name: "check this host", Do: u.check},
	}
	if u.External != nil {
		steps = append(steps, step.Step{Name: "check that etcd is empty, if it can be reached from here", Do: u.checkEtcd})
	}
	steps = append(steps, []step.Step{
		{Name: "unpack the bundle", Do: u.unpack},
		{Name: "write lab " + name, Do: u.write},
		{Name: "power the machines on", Do: u.power},
	}...)
	if u.KubeconfigFile.Path != "" {
		steps = append(steps, step.Step{Name: "merge the kubeconfig into " + u.KubeconfigFile.Path, Do: u.merge})
	}
	if u.Wait {
		steps = append(steps,
			step.Step{Name: "wait for the API", Do: u.waitAPI},
			step.Step{Name: fmt.Sprintf("wait for %d nodes to be Ready", len(u.Spec.KubernetesNodes())), Do: u.waitNodes},
			step.Step{Name: "run a first pod", Do: u.waitPod},
		)
	}
	return steps
}

// Close lets another up or down of the lab go on. If nothing was made, nothing
// is left.
func (u *Up) Close() error {
	if u.busy == nil {
		return nil
	}
	var err error
	l := u.Store.lab(u.Spec.Metadata.Name)
	if _, missing := os.Stat(l.dir); errors.Is(missing, fs.ErrNotExist) {
		err = os.Remove(l.dir + verbLock)
		_ = os.Remove(u.Store.labs()) // only when it is empty
	}
	return errors.Join(err, u.busy.Close())
}

// Lab is the lab, once Steps have run.
func (u *Up) Lab() *Lab { return u.lab }

func (u *Up) check(ctx context.Context) error {
	l := u.Store.lab(u.Spec.Metadata.Name)
	if err := checkHost(ctx, u.Store.Root, u.Spec, l); err != nil {
		return err
	}
	busy, err := lockVerb(l)
	u.busy = busy
	return err
}

// lockVerb keeps two of up and down from working on one lab at a time.
func lockVerb(l *Lab) (*os.File, error) {
	busy, err := lock(l.dir + verbLock)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, &cluster.Problem{
			What: fmt.Sprintf("another kuorum is working on lab %q", l.Name),
			Why:  "an up or down of it has not ended yet",
			Do:   "wait for it, or end it with ^C, then try again",
		}
	}
	return busy, err
}

func (u *Up) unpack(ctx context.Context) (err error) {
	u.bundleDir, err = u.Bundle.Unpack(ctx, u.Store.BundleDir(), nil)
	return err
}

// write makes the lab on disk. A lab that exists keeps its keys, its port and
// its machines' disks; it must have the same Spec.
func (u *Up) write(context.Context) error {
	l, err := u.Store.Open(u.Spec.Metadata.Name)
	if err == nil {
		u.lab = l
		return sameSpec(l, u.Spec)
	}
	if !errors.Is(err, ErrNoLab) {
		return err
	}
	port, err := freePort(u.Spec.Spec.Lab.Port)
	if err != nil {
		return err
	}
	u.lab, err = u.Store.create(u.External, u.Spec, port, time.Now())
	return err
}

func sameSpec(l *Lab, wanted *cluster.Spec) error {
	have, err := l.Spec.YAML()
	if err != nil {
		return err
	}
	want, err := wanted.YAML()
	if err != nil {
		return err
	}
	if string(have) == string(want) {
		return nil
	}
	return &cluster.Problem{
		What: fmt.Sprintf("lab %q exists and is not what you ask for", l.Name),
		Why:  firstDifference(string(have), string(want)),
		Do:   fmt.Sprintf("kuorum up %s    (starts it as it is)\n      kuorum down %s  (removes it; then up makes it anew)", l.Name, l.Name),
	}
}

func freePort(wanted int) (int, error) {
	ln, err := listenAPI(wanted)
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil //nolint:forcetypeassert // a TCP listener's address
}

func listenAPI(port int) (*net.TCPListener, error) {
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return nil, &cluster.Problem{
			What: fmt.Sprintf("cannot listen on 127.0.0.1:%d for the lab's API", port), Err: err,
			Do: fmt.Sprintf("find who has it with: ss -ltnp 'sport = :%d'; end it, or choose another with spec.lab.port in cluster.yaml", port),
		}
	}
	return ln, nil
}

// power starts the lab process, which powers every machine on; in a lab that
// runs, machines that are off are powered on.
func (u *Up) power(ctx context.Context) error {
	if _, ok := u.lab.Running(); ok {
		return u.lab.call(ctx, "POST", "/v1/start", nil)
	}
	ln, err := listenAPI(u.lab.State.Port)
	if err != nil {
		return err
	}
	defer ln.Close()
	api, err := ln.File()
	if err != nil {
		return fmt.Errorf("cannot hand the API's listener over: %w", err)
	}
	defer api.Close()
	held, err := lock(u.lab.path("lab.lock"))
	if err != nil {
		return err
	}
	defer held.Close()
	return u.spawn(ctx, api, held)
}

// spawn starts the lab process in a network namespace of its own and waits
// for its report. The process outlives us: it has its own session, and its
// output goes to the lab's log.
func (u *Up) spawn(ctx context.Context, api, held *os.File) error {
	log, err := os.OpenFile(u.lab.path("lab.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("cannot open the lab's log: %w", err)
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer read.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), u.Store.Exe, "lab", "process", "--state", u.Store.Root, "--bundle", u.bundleDir, u.lab.Name)
	cmd.Env = component.Frugal()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{api, write, held}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: host.NetworkNamespace}
	err = cmd.Start()
	_ = write.Close() // ours; the child has its own
	if err != nil {
		return fmt.Errorf("cannot start the lab process: %w", err)
	}
	if err := host.WriteFile(u.lab.path("lab.pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	stop := context.AfterFunc(ctx, func() { _ = read.Close() })
	defer stop()
	var answer report
	if err := json.NewDecoder(read).Decode(&answer); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		answer.Error = "the lab process ended early"
	}
	if answer.Error != "" {
		return &cluster.Problem{What: "cannot start lab " + u.lab.Name, Why: answer.Error, Log: u.lab.path("lab.log")}
	}
	return cmd.Process.Release()
}

func (u *Up) merge(context.Context) error {
	return u.KubeconfigFile.Merge(u.lab.Kubeconfig(), u.lab.Context())
}

// firstDifference names the first line in which two texts differ.
func firstDifference(have, want string) string {
	a, b := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("it has %q where you ask for %q", strings.TrimSpace(a[i]), strings.TrimSpace(b[i]))
		}
	}
	return fmt.Sprintf("it has %d lines of configuration, you ask for %d", len(a), len(b))
}
