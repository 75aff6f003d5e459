package membership

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kuorum/internal/advise"
	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
)

const (
	dialPatience = 2 * time.Second
	nonceLength  = 26
	// restartPatience is for a component that is replaced at this moment: servers
	// start theirs anew one after the other, see node's takeTurns. An API server
	// needs 5 s to end and 4 to 10 s to begin.
	restartPatience = 30 * time.Second
	knockAgain      = 500 * time.Millisecond
)

// portsOf are those on which the others must reach a node of that cluster.
func portsOf(spec *cluster.Spec, node cluster.Node) []int {
	ports := []int{agent.Port}
	if node.Role == cluster.RoleEtcd {
		return append(ports, component.PortEtcdClient, component.PortEtcdPeer)
	}
	if node.Role == cluster.RoleBalancer {
		return append(ports, component.PortAPI)
	}
	ports = append(ports, component.PortKubelet)
	if spec.HasMember(node) {
		ports = append(ports, component.PortEtcdPeer)
	}
	if node.Role == cluster.RoleServer {
		ports = append(ports, component.PortAPIServer)
	}
	return ports
}

// beacon answers on the ports of a machine that is about to join, so that the
// cluster can see that it reaches them.
type beacon struct {
	nonce     string
	listeners []net.Listener
	done      sync.WaitGroup
}

// light opens every port, etcd's too on a server: whether that will have a
// member is not known yet. One that is taken is an error: what has it would keep
// a component from starting.
func light(ctx context.Context, node cluster.Node) (*beacon, error) {
	b := &beacon{nonce: rand.Text()}
	for _, port := range portsOf(&cluster.Spec{}, node) {
		address := net.JoinHostPort(node.Address, strconv.Itoa(port))
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			b.quench()
			return nil, listenProblem(address, err)
		}
		b.listeners = append(b.listeners, ln)
		b.done.Go(func() { b.answer(ln) })
	}
	return b, nil
}

func listenProblem(address string, err error) error {
	p := &cluster.Problem{What: "cannot listen on " + address, Err: err, Exit: cluster.ExitRefused}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		p.Do = "find who has it: ss -ltnp; a node needs the port for itself"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		p.Do = "name one of this machine's own addresses: --address"
	}
	return p
}

func (b *beacon) answer(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return // it is closed
		}
		_, _ = io.WriteString(conn, b.nonce+"\n") // the caller says what it got
		_ = conn.Close()
	}
}

func (b *beacon) quench() {
	for _, ln := range b.listeners {
		_ = ln.Close()
	}
	b.done.Wait()
}

// callBack is nil when the machine of a request answers at all ports that it
// will have in the cluster.
func callBack(ctx context.Context, spec *cluster.Spec, r Request) error {
	if len(r.Nonce) != nonceLength {
		return &cluster.Problem{What: "the request is malformed", Why: "it has no nonce to call the machine back with", Exit: cluster.ExitUsage}
	}
	closed := each(portsOf(spec, r.node()), func(port int) error { return hear(ctx, net.JoinHostPort(r.Address, strconv.Itoa(port)), r.Nonce) })
	if len(closed) == 0 {
		return nil
	}
	return &cluster.Problem{
		What: fmt.Sprintf("the cluster does not reach %s at %s", r.Name, r.Address),
		Why:  strings.Join(closed, "\n"),
		Do:   "open the way between the machines (firewall, routes, --address), then join again", Exit: cluster.ExitRefused,
	}
}

// each asks about all ports at once and lists what is wrong with any.
func each(ports []int, ask func(int) error) []string {
	wrong := make([]string, len(ports))
	var all sync.WaitGroup
	for i, port := range ports {
		all.Go(func() {
			if err := ask(port); err != nil {
				wrong[i] = fmt.Sprintf("port %d: %v", port, err)
			}
		})
	}
	all.Wait()
	return slices.DeleteFunc(wrong, func(text string) bool { return text == "" })
}

func hear(ctx context.Context, address, nonce string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing was written
	if err := conn.SetReadDeadline(time.Now().Add(dialPatience)); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, nonceLength+2)).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != nonce {
		return errors.New("another machine answers there, or another program")
	}
	return nil
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(limited, "tcp", address)
	if err != nil {
		return nil, undialed{err}
	}
	return conn, nil
}

// undialed is why nobody answers at a port, in words.
type undialed struct{ cause error }

func (e undialed) Error() string { return explainDial(e.cause) }
func (e undialed) Unwrap() error { return e.cause }

// explainDial says in words why nobody answers at a port, whatever is behind it.
func explainDial(err error) string {
	var network net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the machine answers, but refuses: nothing listens there, or a firewall says so"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return fmt.Sprintf("no answer within %v: the machine is off or cut off, or a firewall says nothing", dialPatience)
	}
	return agent.Explain(err)
}

// reachAll is nil when a joining machine of that role reaches enough of the
// servers, and of the etcd nodes that it has to do with. A port of one that is on and
// refuses gets that patience.
func reachAll(ctx context.Context, role cluster.Role, plan Plan, patience time.Duration) error {
	ports := []int{agent.Port}
	if role != cluster.RoleEtcd {
		ports = append(ports, component.PortAPIServer)
	}
	if role == cluster.RoleServer && len(plan.Etcd)+len(plan.Endpoints) == 0 {
		ports = append(ports, component.PortEtcdPeer)
	}
	if err := reach(ctx, "servers", plan.Servers, ports, patience); err != nil {
		return err
	}
	if role == cluster.RoleServer && len(plan.Endpoints) > 0 {
		return reachEndpoints(ctx, plan.Endpoints)
	}
	switch {
	case len(plan.Etcd) == 0 || !role.MayVote():
		return nil
	case role == cluster.RoleEtcd:
		return reach(ctx, "etcd nodes", plan.Etcd, []int{component.PortEtcdPeer}, patience)
	}
	return reach(ctx, "etcd nodes", plan.Etcd, []int{component.PortEtcdClient}, patience)
}

// reach is nil when this machine reaches enough of some nodes. One that is off
// as a whole is the cluster's to judge; one that answers at some ports only is
// a firewall, unless it does after a while.
func reach(ctx context.Context, what string, nodes []cluster.Node, ports []int, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	var wrong []string
	reached := 0
	for _, n := range nodes {
		closed, refuses := knock(ctx, n, ports)
		for (len(closed) < len(ports) || len(ports) == 1) && refuses && time.Now().Before(deadline) {
			select {
			case <-ctx.Done():
			case <-time.After(knockAgain):
			}
			closed, refuses = knock(ctx, n, ports)
		}
		switch len(closed) {
		case 0:
			reached++
		case len(ports):
			wrong = append(wrong, n.Name+" at "+n.Address+": "+closed[0])
		default:
			return unreached(what, []string{n.Name + " at " + n.Address + ": " + strings.Join(closed, ", ")})
		}
	}
	if reached < cluster.Quorum(len(nodes)) {
		return unreached(what, wrong)
	}
	return nil
}

// knock lists which ports of a node are closed; refuses tells that it says so itself
// at one of them.
func knock(ctx context.Context, n cluster.Node, ports []int) (closed []string, refuses bool) {
	var refused atomic.Bool
	closed = each(ports, func(port int) error {
		conn, err := dial(ctx, net.JoinHostPort(n.Address, strconv.Itoa(port)))
		if err == nil {
			return conn.Close()
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			refused.Store(true)
		}
		return err
	})
	return closed, refused.Load()
}

// reachEndpoints is nil when this machine reaches an endpoint of an etcd that
// somebody else runs. That others of it are off is not for a join to judge.
func reachEndpoints(ctx context.Context, endpoints []string) error {
	wrong := make([]string, len(endpoints))
	var all sync.WaitGroup
	for i, endpoint := range endpoints {
		all.Go(func() {
			conn, err := dial(ctx, strings.TrimPrefix(endpoint, "https://"))
			if err == nil {
				err = conn.Close()
			}
			if err != nil {
				wrong[i] = fmt.Sprintf("%s: %v", endpoint, err)
			}
		})
	}
	all.Wait()
	if slices.Contains(wrong, "") {
		return nil
	}
	return unreached("endpoints of etcd", wrong)
}

func unreached(what string, wrong []string) error {
	return &cluster.Problem{
		What: "this machine does not reach the " + what + " of the cluster", Why: strings.Join(wrong, "\n"),
		Do: "open the way between the machines (firewall, routes), then join again", Exit: cluster.ExitRefused,
	}
}

// allTakePart refuses a new voter while another is missing: etcd would not add
// it (server/etcdserver, ErrUnhealthy), and the quorum would be nearer its end.
func allTakePart(voters []cluster.Voter, joining cluster.Node) error {
	var missing []string
	for _, v := range voters {
		if !v.Healthy && v.Name != joining.Name {
			missing = append(missing, v.Name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	what := "server"
	if joining.Role == cluster.RoleEtcd {
		what = "etcd node"
	}
	return &cluster.Problem{
		What: "no " + what + " can join while a voter is missing: " + strings.Join(missing, ", "),
		Why:  "etcd adds no member then: " + cluster.SumOf(voters).String(),
		Do:   "bring it back (kuorum status), or remove it: kuorum node remove " + missing[0], Exit: cluster.ExitRefused,
	}
}

// checkVoters asks the agents of all nodes.
func (s *Service) checkVoters(ctx context.Context, spec *cluster.Spec, joining cluster.Node) error {
	return allTakePart(advise.Voters(spec, s.Agents.Reports(ctx, spec.Spec.Nodes)), joining)
}
