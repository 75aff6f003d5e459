package fault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
	"kuorum/internal/ledger"
)

const (
	// healAgain is how long a fault waits that could not be healed in time.
	healAgain = time.Second
	// patience bounds one act on a machine or the switch.
	patience = 20 * time.Second
)

// Machines are the machines of a lab, as far as they can be broken.
type Machines interface {
	// Resolve names the machine that name stands for: one of Words, or itself.
	// An error of usage says that there is none.
	Resolve(ctx context.Context, name string) (string, error)
	// Ports are the cables' ends at the switch by machine; all machines have one.
	Ports() map[string]string
	// PowerOff cuts a machine's power.
	PowerOff(ctx context.Context, machine string) error
	// Freeze holds all of a machine still, which must be on.
	Freeze(ctx context.Context, machine string) error
	// Thaw lets it go on. One that is off, or not frozen, stays as it is.
	Thaw(machine string) error
	// Signal sends sig to a component's process, also while the machine stands
	// still. The error is host.ErrGone when the machine is off, or the component
	// does not run.
	Signal(machine, component string, sig syscall.Signal) error
}

// Keeper breaks what it is ordered to, and mends it when its time is over. It
// has one worker (Run); all methods may be called at the same time, one acts.
type Keeper struct {
	machines Machines
	load     func(ctx context.Context, rules string) error
	file     *ledger.File[Fault]
	log      *slog.Logger
	changed  chan struct{}

	mu     sync.Mutex
	ledger *Ledger
}

// Open prepares a keeper whose account is in file, one line a change. What an
// earlier keeper left open ended with its lab. load gives rules to the switch,
// see Load.
func Open(file string, machines Machines, load func(context.Context, string) error, log *slog.Logger) (*Keeper, error) {
	account := ledger.New[Fault](file, 0)
	lines, err := account.All()
	if err != nil {
		return nil, fmt.Errorf("cannot read the account of faults: %w", err)
	}
	k := &Keeper{machines: machines, load: load, file: account, log: log, changed: make(chan struct{}, 1), ledger: NewLedger(lines)}
	for _, f := range k.ledger.Active() {
		k.end(f, EndLab)
	}
	return k, nil
}

// Run heals faults whose time is over, until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.changed:
		}
		timer.Stop()
		if wait, ok := k.healDue(ctx); ok {
			timer.Reset(wait)
		}
	}
}

// healDue says how long there is nothing to do; false: for ever.
func (k *Keeper) healDue(ctx context.Context) (time.Duration, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	failed := false
	for _, f := range k.ledger.Due(time.Now()) {
		if err := k.heal(ctx, f, EndTimer); err != nil {
			k.log.Error("fault is not healed yet", "id", f.ID, "error", err)
			failed = true
		}
	}
	next, ok := k.ledger.Deadline()
	if failed {
		return healAgain, true
	}
	return time.Until(next), ok
}

// Make carries an order out and returns when that is done. It goes to its end
// when ctx ends: a fault that is half made would be nobody's.
func (k *Keeper) Make(ctx context.Context, order Order) (Fault, error) {
	if err := order.Check(); err != nil {
		return Fault{}, err
	}
	target, err := Parse(order.Kind, order.Target)
	if err != nil {
		return Fault{}, err
	}
	resolved, err := target.Resolve(func(name string) (string, error) { return k.machines.Resolve(ctx, name) })
	if err != nil {
		return Fault{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	f := k.ledger.Next(order, resolved, time.Now())
	if err := k.act(limited, f); err != nil {
		return Fault{}, err
	}
	k.ledger.Begin(f)
	k.note(f)
	k.wake()
	return f, nil
}

func (k *Keeper) act(ctx context.Context, f Fault) error {
	machine, component := f.Resolved.Left[0], f.Resolved.Component
	switch {
	case f.Kind == Cut:
		return k.load(ctx, Rules(append(k.ledger.Active(), f), k.machines.Ports()))
	case f.Kind == Stop:
		return k.machines.Signal(machine, component, syscall.SIGTERM)
	case f.Kind == Pause && component == "":
		return k.machines.Freeze(ctx, machine)
	case f.Kind == Pause:
		return k.machines.Signal(machine, component, syscall.SIGSTOP)
	case component == "":
		return k.machines.PowerOff(ctx, machine)
	}
	if err := k.machines.Signal(machine, component, syscall.SIGKILL); err != nil {
		return err
	}
	for _, paused := range k.ledger.Active() { // its successor does not stand still
		if paused.holds(machine) && paused.Resolved.Component == component {
			k.end(paused, EndKill)
		}
	}
	return nil
}

// Heal mends the faults of these IDs, all active ones when there are none, and
// returns those that it has mended. One that is over already is no error; an
// ID that never was is one of usage, and nothing is healed.
func (k *Keeper) Heal(ctx context.Context, ids ...string) ([]Fault, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	active := k.ledger.Active()
	for _, id := range ids {
		if _, ok := k.ledger.Get(id); !ok {
			return nil, &cluster.Problem{What: fmt.Sprintf("there is no fault %q", id), Do: "kuorum fault list --all", Exit: cluster.ExitUsage}
		}
	}
	if len(ids) > 0 {
		active = slices.DeleteFunc(active, func(f Fault) bool { return !slices.Contains(ids, f.ID) })
	}
	return k.healAll(ctx, active, EndHeal)
}

func (k *Keeper) healAll(ctx context.Context, faults []Fault, why string) ([]Fault, error) {
	healed := []Fault{}
	var errs error
	for _, f := range faults {
		if err := k.heal(ctx, f, why); err != nil {
			errs = errors.Join(errs, fmt.Errorf("cannot heal %s: %w", f.ID, err))
			continue
		}
		f, _ = k.ledger.Get(f.ID)
		healed = append(healed, f)
	}
	return healed, errs
}

// heal undoes a fault and closes it. The caller holds mu.
func (k *Keeper) heal(ctx context.Context, f Fault, why string) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	rest := slices.DeleteFunc(k.ledger.Active(), func(other Fault) bool { return other.ID == f.ID })
	if err := k.undo(limited, f, rest); err != nil {
		return err
	}
	k.end(f, why)
	k.wake()
	return nil
}

// undo ends what f does, unless another of rest does the same. Who stops
// processes one by one for want of a freezer lets those go on, too, that are
// paused by themselves.
func (k *Keeper) undo(ctx context.Context, f Fault, rest []Fault) error {
	if f.Kind == Cut {
		return k.load(ctx, Rules(rest, k.machines.Ports()))
	}
	if slices.ContainsFunc(rest, f.sameVictim) {
		return nil
	}
	machine, component := f.Resolved.Left[0], f.Resolved.Component
	if component == "" {
		return k.machines.Thaw(machine)
	}
	err := k.machines.Signal(machine, component, syscall.SIGCONT)
	if errors.Is(err, host.ErrGone) {
		return nil // it was started anew since, or will be
	}
	return err
}

// List is every fault, the oldest first; those that are over too.
func (k *Keeper) List() []Fault {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]Fault{}, k.ledger.All()...) // a list also when there is none
}

// MachineOff closes the pauses of a machine that went off at that moment, for
// whatever reason. Its cuts stay: the cables are where they were.
func (k *Keeper) MachineOff(machine string, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.ledger.Active() {
		if f.holds(machine) && !f.Start.After(at) { // it may be on, and paused, again
			k.end(f, EndMachine)
		}
	}
	k.wake()
}

// Refresh follows the lab when machines have come, gone, or got another cable.
func (k *Keeper) Refresh(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	ports := k.machines.Ports()
	exists := func(machine string) bool { return ports[machine] != "" }
	cuts := false
	for _, f := range k.ledger.Active() {
		cuts = cuts || f.Kind == Cut
		if f.Resolved.vacant(exists) {
			k.end(f, EndGone)
		}
	}
	if !cuts {
		return nil
	}
	return k.load(ctx, Rules(k.ledger.Active(), ports))
}

// Close heals everything because the lab ends.
func (k *Keeper) Close(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, err := k.healAll(ctx, k.ledger.Active(), EndLab)
	return err
}

func (k *Keeper) end(f Fault, why string) {
	if ended, ok := k.ledger.End(f.ID, why, time.Now()); ok {
		k.note(ended)
	}
}

// note writes a fault down. Without it, as on a full disk, the fault is healed
// all the same; only the lab's next process would not know of it.
func (k *Keeper) note(f Fault) {
	k.log.Info("fault", "id", f.ID, "kind", f.Kind, "target", f.Text(), "ended", f.Why)
	if err := k.file.Add(f); err != nil {
		k.log.Error("fault is not in the account", "id", f.ID, "error", err)
	}
}

// wake lets Run look again.
func (k *Keeper) wake() {
	select {
	case k.changed <- struct{}{}:
	default: // it will
	}
}
