// Package etcd talks to etcd members that run: what they tell of themselves,
// who belongs to the cluster, and the care of their databases. Starting them
// is the business of package component.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"kuorum/internal/cluster"
)

const (
	connectTimeout = 2 * time.Second
	// pingEvery is the least that gRPC allows a client. A frozen member is
	// noticed earlier, by the deadline of the question; pings are for
	// questions that may take long, such as Defragment.
	pingEvery = 10 * time.Second
	pingWait  = 2 * time.Second
	// reconnectEvery is short because what a member says must be true now: in
	// between, the last failure is the answer.
	reconnectEvery = 500 * time.Millisecond
)

// Client asks the members at a list of endpoints. Each has a connection of its
// own: clientv3's balancer would hand every third question to a frozen member
// of three. All methods may be called at the same time; none of them waits
// longer than its context, which should have a deadline, but where it says so.
type Client struct {
	config  Config
	members []member
}

// member is the connection to one of them.
type member struct {
	endpoint string
	tls      *tls.Config
	client   *clientv3.Client
}

// Config says how members are reached.
type Config struct {
	// Endpoints are URLs such as https://198.18.0.11:2379. Give one for what
	// concerns one member (Status, Defragment), all of them for the rest.
	Endpoints []string
	// TLS may be nil for plain http. Each member must prove the host of its
	// endpoint, whatever way it is reached.
	TLS *tls.Config
	// Dial connects to host:port; nil takes this process's own network. It
	// must end with its context.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Dial prepares to ask members. It connects to nobody and does not block; the
// first question does.
func Dial(config Config) (*Client, error) {
	if len(config.Endpoints) == 0 {
		return nil, errors.New("cannot prepare for etcd: no endpoints")
	}
	c := &Client{config: config}
	for _, endpoint := range config.Endpoints {
		client, err := clientv3.New(settings(endpoint, config))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot prepare for etcd at %s: %w", endpoint, err), c.Close())
		}
		c.members = append(c.members, member{endpoint: endpoint, tls: config.TLS, client: client})
	}
	return c, nil
}

func settings(endpoint string, config Config) clientv3.Config {
	options := []grpc.DialOption{
		grpc.WithNoProxy(), // HTTPS_PROXY is for pulling images
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectEvery / 5, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectEvery},
			MinConnectTimeout: connectTimeout,
		}),
	}
	if config.Dial != nil {
		options = append(options, grpc.WithContextDialer(config.Dial))
	}
	return clientv3.Config{
		Endpoints:            []string{endpoint},
		TLS:                  config.TLS,
		DialKeepAliveTime:    pingEvery,
		DialKeepAliveTimeout: pingWait,
		// One try: whether to ask again is decided here, where it is known
		// what was asked.
		MaxUnaryRetries: 1,
		Logger:          zap.NewNop(), // the default writes to stderr
		DialOptions:     options,
	}
}

// Close ends all connections and the questions on them.
func (c *Client) Close() error {
	var failed []error
	for _, m := range c.members {
		failed = append(failed, m.client.Close())
	}
	return errors.Join(failed...)
}

// maintenance asks past clientv3, whose calls wait for a connection until the
// context ends, and then say nothing of why there was none.
func (m member) maintenance() pb.MaintenanceClient {
	return pb.NewMaintenanceClient(m.client.ActiveConnection())
}

// hex is an ID as etcdctl prints it.
func hex(id uint64) string { return strconv.FormatUint(id, 16) }

func parseID(id string) (uint64, error) {
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil || n == 0 {
		return 0, &cluster.Problem{
			What: fmt.Sprintf("%q is not the ID of an etcd member", id),
			Why:  "an ID is a hexadecimal number such as 8e9e05c52164694d",
			Do:   "kuorum status",
			Exit: cluster.ExitUsage,
		}
	}
	return n, nil
}

// canceled tells whether the caller has given up, rather than run out of time.
func canceled(ctx context.Context) bool { return errors.Is(ctx.Err(), context.Canceled) }

// At is a client for the one member at endpoint, reached in the same way. The
// caller closes it.
func (c *Client) At(endpoint string) (*Client, error) {
	config := c.config
	config.Endpoints = []string{endpoint}
	return Dial(config)
}
