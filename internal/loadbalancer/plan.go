// Package loadbalancer writes the files of balancers that other people run in
// front of the API servers: HAProxy, keepalived, nginx and Envoy. It decides and
// renders only; who asks for the files writes them where they belong.
package loadbalancer

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// Kind is a program that balances, or that keeps an address for one that does.
type Kind string

// The kinds.
const (
	// HAProxy asks the API servers whether they are ready, and ends the connections
	// of one that is not.
	HAProxy Kind = "haproxy"
	// Keepalived holds a virtual IP on one of the machines that run HAProxy.
	Keepalived Kind = "keepalived"
	// NGINX asks nobody: it notices a server that is gone when it connects.
	NGINX Kind = "nginx"
	// Envoy asks as HAProxy does.
	Envoy Kind = "envoy"
)

// Kinds lists them all.
func Kinds() []Kind { return []Kind{HAProxy, Keepalived, NGINX, Envoy} }

// ParseKind is the kind of that name. The error is of usage, and says which was
// perhaps meant.
func ParseKind(name string) (Kind, error) {
	var known []string
	for _, k := range Kinds() {
		if string(k) == name {
			return k, nil
		}
		known = append(known, string(k))
	}
	why := "there are " + strings.Join(known, ", ")
	if close := cluster.Closest(name, known); close != "" {
		why = fmt.Sprintf("did you mean %s? %s", close, why)
	}
	return "", &cluster.Problem{What: fmt.Sprintf("there is no balancer %q", name), Why: why, Exit: cluster.ExitUsage}
}

// Defaults of a Plan.
const (
	// DefaultCheck has a frozen server noticed within half a second.
	DefaultCheck = 100 * time.Millisecond
	// DefaultInterval has a lost balancer's address elsewhere within half a second.
	DefaultInterval = 100 * time.Millisecond
	// DefaultID is what the guides' examples have.
	DefaultID = 51
	// DefaultCA is where the balancers' machines keep the cluster's authorities.
	DefaultCA = "/etc/ssl/kuorum-ca.crt"
)

// APIName is in the certificates of all API servers, and of no other program:
// by it and the authority checks know one.
const APIName = "kubernetes"

const (
	minCheck    = 20 * time.Millisecond
	maxCheck    = time.Minute
	centisecond = 10 * time.Millisecond // the unit of VRRPv3's intervals
	maxInterval = 4095 * centisecond    // it has 12 bits (RFC 9568 section 5.2.7)
	maxRouters  = 16                    // each has a priority of its own
	authority   = "/etc/kuorum/pki/ca.crt"
)

// The programs are a machine's own, of its distribution (ADR 0032).
const (
	HAProxyPath    = "/usr/sbin/haproxy"
	KeepalivedPath = "/usr/sbin/keepalived"
	CurlPath       = "/usr/bin/curl"
)

// HealthURL, at HealthPort, is where HAProxy tells this machine alone whether it reaches
// an API server: keepalived asks.
const (
	HealthPort = 6441
	HealthURL  = "http://127.0.0.1:6441/healthz"
)

// Plan is what balancers are made for. Zero durations mean their defaults.
type Plan struct {
	// Cluster is its name, for people who read the files.
	Cluster string
	// Servers are the API servers, at least one, no two alike.
	Servers []Server
	// Listen is where clients connect. An unspecified address is every address of
	// the machine, as it must be with a virtual IP, which only one of them has.
	Listen netip.AddrPort
	// CA is the file, on the balancer's machine, of the authorities by which checks
	// know an API server. Without it they believe whoever answers. Clients are
	// not concerned: TLS passes through, and they know the server by themselves.
	CA string
	// Check is the time between two checks of a server, 20 ms to 1 min. Two that
	// fail have the server lost.
	Check time.Duration
	// Router is who keeps the virtual IP; for Keepalived only.
	Router Router
}

// Server is one API server.
type Server struct {
	// Name of its node.
	Name    string
	Address netip.AddrPort
}

// Router is one of the machines that share a virtual IP (VRRPv3, RFC 9568).
type Router struct {
	// Address is the virtual IP, of the family of Self and Peers and none of them.
	Address netip.Addr
	// Interface is where it is put, and where the others are heard.
	Interface string
	// Name and Self are this machine's.
	Name string
	Self netip.Addr
	// Peers are the other machines. There must be one unless this machine is Alone.
	Peers []netip.Addr
	Alone bool
	// ID is the VRID, 1..255, which no other virtual router of the network has.
	ID uint8
	// Interval between advertisements, in steps of 10 ms up to 40.95 s.
	Interval time.Duration
	// Yield is a file, if any: this machine leaves the address to others while there is
	// another number in it than 0.
	Yield string
}

// File is a file to be written.
type File struct {
	// Name is what the program calls it, without a directory.
	Name string
	Data []byte
}

// Render writes the file of each kind, in the order of kinds. The error is of
// usage and names all that is wrong with the plan.
func Render(p Plan, kinds ...Kind) ([]File, error) {
	p = p.normal()
	wrong := p.wrong()
	if slices.Contains(kinds, Keepalived) {
		wrong = append(wrong, p.Router.wrong(p)...)
	}
	if slices.Contains(kinds, HAProxy) && p.Listen.Port() == HealthPort {
		wrong = append(wrong, fmt.Sprintf("clients cannot connect to port %d, where HAProxy tells keepalived how it is", HealthPort))
	}
	if len(wrong) > 0 {
		return nil, &cluster.Problem{What: "cannot plan this balancer", Why: strings.Join(wrong, "\n"), Do: "kuorum lb config --help", Exit: cluster.ExitUsage}
	}
	var files []File
	for _, k := range kinds {
		f, err := p.render(k)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// Where is the one address at which clients find the balancer: the virtual IP, if
// keepalived is among kinds, or where it listens. It is the zero Addr if that is
// every address of a machine.
func (p Plan) Where(kinds ...Kind) netip.Addr {
	switch {
	case slices.Contains(kinds, Keepalived):
		return p.Router.Address
	case p.Listen.Addr().IsUnspecified():
		return netip.Addr{}
	}
	return p.Listen.Addr()
}

func (p Plan) render(k Kind) (File, error) {
	switch k {
	case HAProxy:
		return File{"haproxy.cfg", haproxy(p)}, nil
	case Keepalived:
		return File{"keepalived.conf", keepalived(p)}, nil
	case NGINX:
		return File{"nginx.conf", nginx(p)}, nil
	case Envoy:
		return File{"envoy.yaml", envoy(p)}, nil
	}
	_, err := ParseKind(string(k))
	return File{}, err
}

// normal is p with its defaults.
func (p Plan) normal() Plan {
	if p.Check == 0 {
		p.Check = DefaultCheck
	}
	if p.Router.Interval == 0 {
		p.Router.Interval = DefaultInterval
	}
	if p.Router.ID == 0 {
		p.Router.ID = DefaultID
	}
	return p
}

// wrong says what is wrong for every kind.
func (p Plan) wrong() []string {
	var wrong []string
	check := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	check(printable(p.Cluster), "%q is no name of a cluster", p.Cluster)
	check(len(p.Servers) > 0, "there is no API server to lead to")
	check(p.Listen.IsValid() && p.Listen.Port() != 0, "there is no address and port to listen at")
	check(p.Check >= minCheck && p.Check <= maxCheck, "checks are every %v: it is %v to %v", p.Check, minCheck, maxCheck)
	check(p.CA == "" || path.IsAbs(p.CA) && printable(p.CA), "the file of the authorities, %q, must be an absolute path without spaces", p.CA)
	seen := map[string]bool{}
	for _, s := range p.Servers {
		check(printable(s.Name), "%q is no name of a server", s.Name)
		check(s.Address.IsValid() && s.Address.Port() != 0 && !s.Address.Addr().IsUnspecified(), "server %s has no address and port", s.Name)
		check(!seen[s.Name] && !seen[s.Address.String()], "server %s is there twice", s.Name)
		check(s.Address != p.Listen, "the balancer cannot listen at %s, where API server %s is", p.Listen, s.Name)
		seen[s.Name], seen[s.Address.String()] = true, true
	}
	return wrong
}

// wrong says what is wrong for Keepalived.
func (r Router) wrong(p Plan) []string {
	var wrong []string
	check := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	check(usable(r.Address), "there is no virtual IP to keep (--address)")
	check(printable(r.Interface), "there is no interface to put the virtual IP on (--interface)")
	check(printable(r.Name) && usable(r.Self), "this machine's name and address are not known (--self NAME/ADDRESS)")
	check(len(r.Peers) > 0 || r.Alone, "there is no other machine to take the virtual IP over (--peer ADDRESS)")
	check(len(r.Peers) < maxRouters, "%d machines share the virtual IP: %d at most", len(r.Peers)+1, maxRouters)
	check(r.Interval >= centisecond && r.Interval <= maxInterval && r.Interval%centisecond == 0,
		"the interval is %v: it is %v to %v, in steps of %v", r.Interval, centisecond, maxInterval, centisecond)
	check(p.Listen.Addr() != r.Address, "the balancer cannot listen at the virtual IP %s alone, which one machine has at a time: listen at all addresses", r.Address)
	check(r.Yield == "" || path.IsAbs(r.Yield) && printable(r.Yield), "the file %q must be an absolute path without spaces", r.Yield)
	check(r.Self != r.Address, "the virtual IP %s is this machine's own address", r.Address)
	for i, peer := range r.Peers {
		check(usable(peer) && peer.Is4() == r.Self.Is4(), "the peer %s is not an address of the family of %s", peer, r.Self)
		check(peer != r.Self && !slices.Contains(r.Peers[:i], peer), "the peer %s is there twice", peer)
		check(peer != r.Address, "the virtual IP %s is the address of a peer", peer)
	}
	check(!usable(r.Address) || !usable(r.Self) || r.Address.Is4() == r.Self.Is4(), "the virtual IP %s is not of the family of %s", r.Address, r.Self)
	for _, s := range p.Servers {
		check(s.Address.Addr() != r.Address, "the virtual IP %s is the address of API server %s", r.Address, s.Name)
	}
	return wrong
}

func usable(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast()
}

// printable tells whether a word can stand in any of the files as it is.
func printable(word string) bool {
	return word != "" && !strings.ContainsFunc(word, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"'#;{}$\!`+"`", r)
	})
}

// seconds is d as the programs take it that know no units.
func seconds(d time.Duration) string { return fmt.Sprint(d.Seconds()) }

// milliseconds is d rounded down, but never nothing.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%dms", max(1, d.Milliseconds()))
}

// patience is how long a server has for its answer to a check.
func (p Plan) patience() time.Duration { return p.Check * 3 / 2 }

// lines is one line a server, by format of name and address.
func (p Plan) lines(format string) string {
	var b strings.Builder
	for _, s := range p.Servers {
		fmt.Fprintf(&b, format, s.Name, s.Address)
	}
	return b.String()
}
