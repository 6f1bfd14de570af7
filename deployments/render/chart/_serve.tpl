{{- /* The Serve config: an application for the ingress, one for each model, and one for its expert pools. */ -}}
{{- define "pointsman.serveConfig" -}}
{{- $config := .Values.config -}}
{{- $pods := .Values.pods -}}
{{- $nulls := .Values.nulls -}}
{{- $surge := int64 $pods.surge -}}
proxy_location: Disabled
logging_config: {{ toJson $pods.serveLogging }}
applications:
  - name: ingress
    route_prefix: null
    import_path: {{ $pods.entry }}:ingress
    args: {{ dict "config" $config "order" .Values.order "nulls" $nulls.config | toJson }}
    deployments:
      - name: Ingress
        ray_actor_options: {num_cpus: {{ $pods.ingressCpus }}, resources: {pointsman_ingress: 1}}
        max_surge_percent: {{ $surge }}
  {{- range $name, $model := $config.models }}
  {{- $set := get $nulls.models $name | default list }}
  {{- $told := dict "name" $name "model" $model "ray" $config.ray "telemetry" $config.telemetry "nulls" $set }}
  {{- with $model.pools }}
  {{- $group := include "pointsman.poolsGroup" $name }}
  - name: pools-{{ $name }}
    route_prefix: null
    import_path: {{ $pods.entry }}:pools
    args: {{ merge (dict "application" (printf "pools-%s" $name)) $told | toJson }}
    external_scaler_enabled: true
    deployments:
      {{- range $number := until (int .count) }}
      - name: Pool-{{ $number }}
        ray_actor_options: {num_cpus: {{ $model.pools.cpus }}, resources: { {{- include "pointsman.resource" $group }}: 1}}
      {{- end }}
  {{- end }}
  - name: model-{{ $name }}
    route_prefix: null
    import_path: {{ $pods.entry }}:model
    args: {{ merge (dict "application" (printf "model-%s" $name)) $told | toJson }}
    deployments:
      - name: ModelReplica
        ray_actor_options:
          num_cpus: {{ $model.replicas.cpus }}
          num_gpus: {{ $model.replicas.gpus }}
          memory: {{ int64 $model.replicas.memory_bytes }}
          resources: { {{- include "pointsman.resource" (include "pointsman.modelGroup" $name) }}: 1}
        max_surge_percent: {{ $surge }}
  {{- end }}
{{- end }}
