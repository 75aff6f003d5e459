package endpoint

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"sigs.k8s.io/yaml"

	"kuorum/internal/cluster"
	"kuorum/internal/vrrp"
)

// Backend is one kube-apiserver.
type Backend struct {
	// Name of the node it runs on; unique.
	Name string `json:"name"`
	// Address is IP:PORT; unique. A name is refused: the balancer must not
	// depend on DNS.
	Address string `json:"address"`
}

// Config of a balancer. Zero durations and counts mean their defaults. Backends,
// Local and a part of VIP may change while it runs.
type Config struct {
	// Listen holds the addresses (IP:PORT) that clients connect to.
	Listen []string `json:"listen"`
	// Backends to spread connections over.
	Backends []Backend `json:"backends"`
	// Local is the name of the backend on this machine, or empty. It wins
	// when several backends have equally few connections.
	Local string `json:"local,omitempty"`

	// VIP is nil where no virtual IP can be on this machine. Its Peers and Rank may
	// change while it runs.
	VIP *VIP `json:"vip,omitempty"`

	// CA is the path of the PEM file that signed the backends' certificates.
	CA string `json:"ca"`
	// Cert and Key are paths of the PEM files the health check identifies
	// itself with; both empty means anonymous. All three files are read again
	// whenever a check connects, so they may be replaced at any time.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	// ServerName is the name expected in the backends' certificates;
	// "kubernetes" by default.
	ServerName string `json:"serverName,omitempty"`

	// Interval from the start of one check to the next; 500 ms by default.
	Interval cluster.Duration `json:"interval,omitempty"`
	// ReadyInterval is how long a backend that said it is ready is believed
	// and only asked whether it lives; 2 s by default. 0 cannot be set: it is
	// the default.
	ReadyInterval cluster.Duration `json:"readyInterval,omitempty"`
	// Timeout of one check and of one connect; 1 s by default.
	Timeout cluster.Duration `json:"timeout,omitempty"`
	// Fall is the number of unanswered checks in a row that make a backend
	// down; 2 by default. A refused connection needs no second opinion.
	Fall int `json:"fall,omitempty"`
	// Rise is the number of good checks in a row that make a backend healthy;
	// 1 by default.
	Rise int `json:"rise,omitempty"`
	// DrainTimeout is how long the connections of a backend that answers, but
	// is not ready, are left alone while a healthy one exists, and those of a
	// backend that was removed; 30 s by default.
	DrainTimeout cluster.Duration `json:"drainTimeout,omitempty"`

	// Status is the loopback address (IP:PORT) of the plain HTTP status
	// server; empty means none.
	Status string `json:"status,omitempty"`
}

// VIP is the virtual IP that this machine may hold, as one of the servers.
type VIP struct {
	// Address is the virtual IP; where it is among the addresses that the
	// balancer listens on, it is so also while another machine holds it.
	Address string `json:"address"`
	// Own is this machine's address on the same link; Peers are the other servers'.
	Own   string   `json:"own"`
	Peers []string `json:"peers,omitempty"`
	// Rank is the server's place among all, from 0 on: where several could take
	// the address, the lowest does.
	Rank     int              `json:"rank"`
	ID       int              `json:"id"`
	Interval cluster.Duration `json:"interval"`
	// Control is the path of a unix socket, for root only, that takes orders to
	// move the address (MovePath), and tells of its clients (ClientsPath).
	Control string `json:"control"`
	// History is the path of the file that remembers when this machine has taken and
	// given up the address, and why: a ledger.File of cluster.VIPChange. Empty: none.
	History string `json:"history,omitempty"`
}

func readConfig(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the balancer's configuration: %w", err)
	}
	return data, nil
}

// parseConfig takes YAML or JSON, refuses fields it does not know, sets
// defaults and validates. Errors name path.
func parseConfig(path string, data []byte) (Config, error) {
	var cfg Config
	if err := yaml.UnmarshalStrict(data, &cfg); err != nil {
		return Config{}, fmt.Errorf("cannot parse the balancer's configuration %s: %w", path, err)
	}
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return Config{}, fmt.Errorf("cannot use the balancer's configuration %s: %w", path, err)
	}
	return cfg, nil
}

func (c Config) withDefaults() Config {
	setDefault(&c.ServerName, "kubernetes")
	setDefault(&c.Interval, cluster.Duration(500*time.Millisecond))
	setDefault(&c.ReadyInterval, cluster.Duration(2*time.Second))
	setDefault(&c.Timeout, cluster.Duration(time.Second))
	setDefault(&c.Fall, 2)
	setDefault(&c.Rise, 1)
	setDefault(&c.DrainTimeout, cluster.Duration(30*time.Second))
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate reports everything that is wrong with c, one error a field. It
// expects defaults to be set and looks at no file.
func (c Config) Validate() error {
	return errors.Join(
		c.validateListen(),
		c.validateBackends(),
		c.validateCheck(),
		c.validateStatus(),
		c.validateVIP(),
	)
}

func (c Config) validateListen() error {
	if len(c.Listen) == 0 {
		return errors.New("listen: want at least one IP:PORT")
	}
	var errs []error
	for i, addr := range c.Listen {
		_, err := parseAddress(addr)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("listen[%d]: %w", i, err))
		case slices.Contains(c.Listen[:i], addr):
			errs = append(errs, fmt.Errorf("listen[%d]: %s is listed twice", i, addr))
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateBackends() error {
	if len(c.Backends) == 0 {
		return errors.New("backends: want at least one")
	}
	var errs []error
	names, addresses := map[string]bool{}, map[string]bool{}
	for i, b := range c.Backends {
		_, err := parseAddress(b.Address)
		switch {
		case b.Name == "":
			errs = append(errs, fmt.Errorf("backends[%d]: has no name", i))
		case names[b.Name]:
			errs = append(errs, fmt.Errorf("backends[%d]: name %s is used twice", i, b.Name))
		case err != nil:
			errs = append(errs, fmt.Errorf("backends[%d]: %w", i, err))
		case addresses[b.Address]:
			errs = append(errs, fmt.Errorf("backends[%d]: address %s is used twice", i, b.Address))
		case slices.Contains(c.Listen, b.Address):
			errs = append(errs, fmt.Errorf("backends[%d]: the balancer itself listens on %s", i, b.Address))
		}
		names[b.Name], addresses[b.Address] = true, true
	}
	if c.Local != "" && !names[c.Local] {
		errs = append(errs, fmt.Errorf("local: there is no backend %q", c.Local))
	}
	return errors.Join(errs...)
}

func (c Config) validateCheck() error {
	var errs []error
	if c.CA == "" {
		errs = append(errs, errors.New("ca: want the path of a PEM file"))
	}
	if (c.Cert == "") != (c.Key == "") {
		errs = append(errs, errors.New("cert, key: want both or none"))
	}
	if c.Interval < 0 || c.Timeout < 0 || c.DrainTimeout < 0 {
		errs = append(errs, errors.New("interval, timeout, drainTimeout: must not be negative"))
	}
	if c.Fall < 0 || c.Rise < 0 {
		errs = append(errs, errors.New("fall, rise: must not be negative"))
	}
	return errors.Join(errs...)
}

func (c Config) validateStatus() error {
	if c.Status == "" {
		return nil
	}
	addr, err := parseAddress(c.Status)
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if !addr.Addr().IsLoopback() {
		return fmt.Errorf("status: %s is not a loopback address; the status server has no authentication", c.Status)
	}
	if slices.Contains(c.Listen, c.Status) {
		return fmt.Errorf("status: %s is in listen already", c.Status)
	}
	return nil
}

func (c Config) validateVIP() error {
	if c.VIP == nil {
		return nil
	}
	return c.VIP.validate()
}

// is tells whether address, IP:PORT, is that of the virtual IP; a nil v has none.
func (v *VIP) is(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return v != nil && err == nil && host == v.Address
}

// router is cfg as the virtual router wants it, but for the interface.
func (v VIP) router() (vrrp.Config, error) {
	own, err := netip.ParseAddr(v.Own)
	if err != nil {
		return vrrp.Config{}, fmt.Errorf("vip.own: %w", err)
	}
	address, err := netip.ParseAddr(v.Address)
	if err != nil {
		return vrrp.Config{}, fmt.Errorf("vip.address: %w", err)
	}
	if v.ID < 1 || v.ID > 255 {
		return vrrp.Config{}, fmt.Errorf("vip.id: %d is not between 1 and 255", v.ID)
	}
	cfg := vrrp.Config{
		VRID: uint8(v.ID), Addresses: []netip.Addr{address}, Source: own,
		Priority: vrrp.Spread(v.Rank, len(v.Peers)+1), Interval: time.Duration(v.Interval),
	}
	for i, text := range v.Peers {
		peer, err := netip.ParseAddr(text)
		if err != nil {
			return vrrp.Config{}, fmt.Errorf("vip.peers[%d]: %w", i, err)
		}
		cfg.Peers = append(cfg.Peers, peer)
	}
	return cfg, nil
}

// validate says what is wrong with v, without looking at this machine.
func (v VIP) validate() error {
	router, err := v.router()
	if err != nil {
		return err
	}
	router.Interface = "any"
	if err := router.Validate(); err != nil {
		return fmt.Errorf("vip: %w", err)
	}
	return nil
}

func parseAddress(s string) (netip.AddrPort, error) {
	addr, err := netip.ParseAddrPort(s)
	if err != nil || addr.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is not IP:PORT", s)
	}
	return addr, nil
}

// clientTLS reads the check's files. HTTP/1.1 is left as the only protocol: a
// check asks one question at a time.
func (c Config) clientTLS() (*tls.Config, error) {
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("cannot read the CA of the health check: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("cannot use the CA of the health check: %s holds no PEM certificate", c.CA)
	}
	cfg := &tls.Config{RootCAs: roots, ServerName: c.ServerName, MinVersion: tls.VersionTLS12}
	if c.Cert == "" {
		return cfg, nil
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("cannot load the client certificate of the health check: %w", err)
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg, nil
}
